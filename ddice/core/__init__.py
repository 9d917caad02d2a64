"""What everything stands on: configurations, files, the cache, random numbers, plugins."""
