"""Many episodes of many policies on many tasks: records, statistics and a report."""
