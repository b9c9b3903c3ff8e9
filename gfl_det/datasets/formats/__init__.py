"""Own data in the formats that labelling tools write: COCO, YOLO and VOC."""
