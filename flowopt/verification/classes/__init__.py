"""What the exactness that a pass declares asks for beyond the gates of EXACT."""
