"""Stand-ins for the outside world and conformance suites, for KQS's own tests and for third parties.

``clock``, ``executor``, ``disk`` and ``faults`` need nothing but KQS. ``engines``, ``engine_machine`` and
``stores`` need pytest, pytest-asyncio and hypothesis; nothing outside ``kqs.testing`` imports them.
"""
