"""`make bench`: how fast serving and training are, as ratios to yardsticks that run beside them."""
