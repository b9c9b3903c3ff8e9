"""Demo page that shows the detections of a dropped image, served locally."""
