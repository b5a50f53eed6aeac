"""`python -m sae_match`."""

from sae_match.app import main

main()
