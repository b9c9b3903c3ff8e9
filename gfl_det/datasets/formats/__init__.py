"""Readers for custom data in the formats of labelling tools: COCO, YOLO and VOC."""
