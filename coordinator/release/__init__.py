"""Releases: a finished run's adapter, signed by its coordinator and served to the sites over mutual TLS.

::

    publish    run folder -> manifest (signed), files by hash, row in the registry, head (signed)
    server     List, Describe, Fetch (release.proto)
    fetch      at a site: signature first, then bytes, then hashes, then one rename
    shelf      what a site has: NAME/VERSION/, NAME/current
"""
