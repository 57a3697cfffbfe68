# SPDX-License-Identifier: Apache-2.0
"""The program of web's Marble: a stock Envoy carries the data in place of our relay, beside the app.

The worker starts it as its child, with the environment that the manifest gives web. `settings` turns that environment
and the Marble's certificate into Envoy's configuration (pure); `__main__` runs Envoy and the app until one ends.
"""
