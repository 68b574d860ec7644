"""Files and factories become programs."""
