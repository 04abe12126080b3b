"""torch networks: YOLO-Pose in the sizes n6, s6, m6 and l6, full and lite. Needs the extra ``train``."""
