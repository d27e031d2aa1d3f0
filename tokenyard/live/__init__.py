"""What the web page shows: a cluster at this moment, and what its devices have done of a batch."""
