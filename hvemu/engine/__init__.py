"""Unicorn, armed: it stops exactly before every sensitive instruction, and knows no policy."""
