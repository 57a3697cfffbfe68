# SPDX-License-Identifier: Apache-2.0
"""The operator's verbs: `marblemesh manifest …`, `status`, `verify`, `certificate …`, `version`.

    __main__.py       reads arguments and environment, nothing else does
    app.py            the tree of verbs; errors → one line on stderr and an exit status
    manifest_verbs.py, certificate_verbs.py, status_verbs.py      what each verb does
    trust_options.py  the flags that say whom to trust; trust.py makes a `Client` of them
    manifest_file.py  a manifest from disk: JSON as it is, YAML converted
    files.py          reading and writing files with errors in one line

Exit status: 0 it worked and the answer is good; 1 it failed or the answer is no; 2 the command line is wrong.
"""
