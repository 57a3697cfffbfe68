# SPDX-License-Identifier: Apache-2.0
"""Emojivoto: people vote for emoji. Four small HTTP/1.1 apps that speak over the sockets they are given.

`web` answers the visitors, and asks `emoji` what there is to vote for and `voting` who leads; `vote_bot` is the
visitors. None of them knows TLS, the mesh, or the address of another: `LISTEN`, `EMOJI`, `VOTING` and `WEB` in the
environment name UNIX sockets as `unix:PATH`.
"""
