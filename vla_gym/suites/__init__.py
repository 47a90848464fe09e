"""The suites: each file is one benchmark, its data (`SUITE`) and its simulator."""
