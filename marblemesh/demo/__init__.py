# SPDX-License-Identifier: Apache-2.0
"""The demo: emojivoto as four Marbles beside a real Envoy and a real Prometheus, started by `marblemesh demo`.

`emojivoto/` is the app, and knows nothing of the mesh. `topology` says which processes there are and how they are
called (pure), `envoy_config` and `prometheus_config` what they are configured with (pure), `processes` starts and reaps
them, `steps` is the order of events, `observe` reads what happens, `view` and `result` show it.
"""
