"""The made world: coloured shapes whose motion carries the meaning, with captions, drawn from a seed.

A *story* (stories.py) says which things there are and what they do. A *take* (takes.py) is a story staged with places,
sizes and speeds, which can be drawn at any moment. *Stills* (stills.py) are single moments. A set of unordered frames
does not tell a story from its reversal.
"""
