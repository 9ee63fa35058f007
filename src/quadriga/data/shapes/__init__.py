"""Procedural scenes of coloured shapes: objects, pictures, captions and questions."""
