"""Training under faults: a schedule of real kills, stops and cut links, and a scorecard of what they cost."""
