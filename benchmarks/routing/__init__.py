"""The parts of ``benchmarks.routers``: servers, requests, the routers, and who sends what to whom."""
