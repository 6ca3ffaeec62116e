"""Numbers: what gpufut costs, beside what others cost. Knows the public API only."""
