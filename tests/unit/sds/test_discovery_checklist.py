# SPDX-License-Identifier: Apache-2.0
"""The rules that a discovery server has to keep, and the test that states each: an index that cannot go stale.

Sources: Envoy's "xDS REST and gRPC protocol", xDS TP3 (`resource_errors`), and what Envoy 1.40 does where they leave a
choice.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

RULES = {
    "streams": {
        "the type may be left out on a per-type stream": "sotw:test_the_type_may_be_left_out_on_a_stream_of_one_type",
        "an aggregated stream needs it": "sotw:test_requests_that_end_the_stream",
        "types are independent of each other": "subscriptions:test_the_nonce_of_one_type_answers_no_other",
        "a type that is not known is empty": "delta:test_an_unknown_type_is_answered_like_an_empty_one",
        "the node counts in the first request": "bookkeeping:test_a_node_of_any_size_is_refused",
        "bytes are what protobuf makes": "wire:test_an_incremental_response_is_what_protobuf_makes",
    },
    "answers": {
        "every response is answered once": (
            "refusals:test_every_response_is_answered_once_a_second_answer_counts_as_neither"
        ),
        "an ACK is not answered": "sotw:test_an_ack_is_not_answered",
        "a NACK is the presence of an error": (
            "refusals:test_an_error_is_a_nack_even_if_the_client_returns_the_new_version_or_asks_for_more"
        ),
        "and nothing else": "refusals:test_no_error_is_no_nack_even_if_the_client_returns_another_version",
        "a stale nonce answers nothing": "refusals:test_an_error_about_an_older_response_refuses_nothing",
        "but its names count (state of the world)": "sotw:test_a_stale_nonce_is_no_ack_but_its_names_count",
        "and so they do (incremental)": "delta:test_changes_of_the_subscription_count_although_the_nonce_is_stale",
        "names may come with an ACK": "subscriptions:test_names_in_an_ack_count_as_much_as_in_any_other_request",
        "nonces do not survive a reconnect": (
            "sotw:test_the_first_request_of_a_stream_is_answered_although_the_client_names_our_version_and_an_old_nonce"
        ),
        "a refused version is not repeated": (
            "refusals:test_a_refused_version_is_not_sent_again_however_often_the_view_is_rebuilt"
        ),
        "but tried again after long": "refusals:test_after_minutes_a_refused_version_is_tried_once_more",
        "a refused response is taken apart": (
            "delta:test_a_refused_response_is_taken_apart_once_to_find_the_bad_resource"
        ),
        "what is said of it is cleaned": "redaction:test_keys_are_removed_in_every_form",
    },
    "pushes": {
        "identical state is not pushed": "sotw:test_a_change_is_pushed_and_an_unchanged_view_is_not",
        "changes are merged, never queued": "sotw:test_many_changes_while_a_response_is_under_way_make_one_push",
        "one secret in a response (state of the world)": (
            "sotw:test_every_secret_travels_in_a_response_of_its_own_one_after_the_other"
        ),
        "one secret in a response (incremental)": "delta:test_every_secret_travels_in_a_response_of_its_own",
        "never a time to live": ("wire:test_envoys_own_definitions_read_a_response_and_find_no_time_to_live_in_it"),
        "listener and cluster responses are whole": "sotw:test_a_listener_that_is_gone_is_left_out_at_once",
        "others hold what changed": "subscriptions:test_only_what_changed_of_endpoints_is_sent",
        "large sets are split": "delta:test_large_sets_are_split_over_several_responses",
        "versions name content": "sotw:test_versions_name_the_content_not_the_stream",
        "encoded once for all": "wire:test_encodings_of_a_change_do_not_grow_with_the_streams_that_share_it",
    },
    "subscriptions": {
        "new names are answered, known ones not repeated": (
            "sotw:test_an_added_name_is_answered_and_the_known_one_is_not_repeated"
        ),
        "dropped and asked for again: sent again": "sotw:test_a_name_that_is_dropped_and_asked_for_again_is_sent_again",
        "every subscribed name is answered (incremental)": (
            "delta:test_a_name_that_is_subscribed_to_again_is_answered_again"
        ),
        "the same request again asks again (state of the world)": (
            "sotw:test_the_same_request_again_after_its_ack_asks_for_the_secrets_again"
        ),
        "names that do not exist are answered at once (incremental)": (
            "delta:test_what_does_not_exist_is_answered_at_once_and_stays_subscribed"
        ),
        "and where the field exists (state of the world)": (
            "sotw:test_a_name_that_does_not_exist_is_answered_with_an_error_alone_and_pushed_when_it_appears"
        ),
        "what may not be had is denied, the stream lives on": (
            "delta:test_a_forbidden_type_is_answered_with_permission_denied_and_the_stream_lives_on"
        ),
        "no extension is called removed": "delta:test_a_missing_filter_is_never_called_removed",
        "an unsubscription needs no answer": "delta:test_dropped_names_are_not_pushed_and_not_answered",
        "unless a wildcard covers the name": "delta:test_a_dropped_name_that_the_wildcard_covers_is_answered",
        "what a returning client holds is believed of listeners and clusters": (
            "delta:test_a_reconnecting_client_is_not_sent_clusters_that_it_holds_and_told_what_is_gone"
        ),
        "and of nothing else": (
            "subscriptions:"
            "test_a_returning_client_says_for_each_type_what_it_holds_and_is_sent_endpoints_and_secrets_all_the_same"
        ),
        "only in the first request of a type": (
            "subscriptions:test_what_is_held_counts_only_in_the_first_request_of_a_type"
        ),
    },
    "wildcards": {
        "no name ever: everything, of listeners and clusters": (
            "sotw:test_a_first_request_without_names_gets_all_clusters"
        ),
        "of nothing else": "sotw:test_no_name_means_nothing_for_secrets",
        "answered even if empty": "delta:test_the_first_wildcard_is_answered_even_if_there_is_nothing",
        "off for good after the first name": "sotw:test_after_the_first_name_an_empty_list_means_nothing_any_more",
        "kept beside names until dropped (incremental)": (
            "delta:test_adding_a_name_keeps_the_legacy_wildcard_until_it_is_dropped"
        ),
        "explicit": "sotw:test_explicit_wildcards_and_names_for_clusters",
        "subscribed and dropped at once is nothing": "delta:test_a_name_in_both_lists_is_dropped",
    },
    "order": {
        "what is pointed at goes first": (
            "order:test_clusters_endpoints_secrets_listeners_routes_whatever_was_asked_for_first"
        ),
        "nothing overtakes": "order:test_a_listener_waits_for_what_is_due_but_cannot_be_written_yet",
        "nothing goes that may still be pointed at": (
            "order:test_a_cluster_goes_after_its_listener_and_after_its_route"
        ),
        "secrets again after listeners and clusters that name them": (
            "order:test_secrets_and_routes_that_a_pushed_listener_names_are_sent_again_and_no_others"
        ),
        "roots before leaves": "order:test_roots_go_before_identities_whatever_they_are_called",
    },
    "limits": {
        "names in a request": "limits:test_a_hundred_thousand_names_in_one_request_end_the_stream",
        "names over time": "limits:test_a_hundred_thousand_names_one_after_the_other_end_the_stream",
        "answers that wait": "limits:test_names_that_come_and_go_without_any_answer_taken_end_the_stream",
        "memory": (
            "limits:test_a_client_that_floods_within_the_limits_and_answers_nothing_makes_us_hold_a_few_megabytes"
        ),
        "size of a request": "sotw:test_bounds_on_names_types_and_size",
        "responses that gRPC clients accept": (
            "delta:test_many_missing_names_are_answered_in_responses_that_grpc_clients_accept"
        ),
    },
}


@pytest.mark.parametrize("rules", RULES)
def test_every_rule_has_a_test(rules: str) -> None:
    missing = [rule for rule, where in RULES[rules].items() if not _exists(*where.split(":"))]
    assert missing == []


def _exists(file: str, name: str) -> bool:
    tree = ast.parse((Path(__file__).parent / f"test_discovery_{file}.py").read_text())
    return name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
