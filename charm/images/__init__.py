"""The one way in: paths, bytes and image objects come in, uint8 RGB arrays or a reason for refusal go out.

Called by every stage that opens image files, by the scorer, and by the command and its server.
"""
