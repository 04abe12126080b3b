"""Rendered people: bodies, clothes, scenes and the camera, drawn with numpy and OpenCV alone."""
