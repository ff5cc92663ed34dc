"""Average precision as COCO defines it, of boxes and of masks. The counting is faster-coco-eval's."""

from typing import Any, Literal

from catlip.data.coco import Instances
from catlip.data.objects import bitmap, encoded, mask_tools
from catlip.errors import UsageError

NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")


def average_precision(truth: Instances, found: list[dict[str, Any]], kind: Literal["bbox", "segm"]) -> dict[str, Any]:
    """{"AP": mean over IoU .5 to .95, "AP50", "AP75", "small": below 32^2 pixels, "medium", "large": from 96^2 on}, in
    percent; None where nothing of that size is there.

    found: COCO's results, with the ids of the file that `truth` was read from. Crowds excuse detections, but need none.
    """
    mask_tools()  # says so if the library is missing
    from faster_coco_eval import COCO, COCOeval_faster

    table = COCO(_table(truth, masks=kind == "segm"))
    image_of = {objects.id: number for number, objects in enumerate(truth.pictures.values(), 1)}
    class_of = {category: number for number, category in enumerate(truth.ids, 1)}
    results = [
        {**one, "image_id": image_of[one["image_id"]], "category_id": class_of[one["category_id"]]} for one in found
    ]
    rounds = COCOeval_faster(table, table.loadRes(results), iouType=kind, print_function=_nothing)
    rounds.run()
    values = dict(zip(NAMES, map(float, rounds.stats), strict=False))
    return {name: None if value < 0 else 100 * value for name, value in values.items()}


def _table(truth: Instances, masks: bool) -> dict[str, Any]:
    """The file again, with ids from 1 on (an annotation 0 counts as no match) and masks as checked run lengths."""
    images, annotations = [], []
    for number, objects in enumerate(truth.pictures.values(), 1):
        images.append({"id": number, "width": objects.width, "height": objects.height})
        for row, (x0, y0, x1, y1) in enumerate(objects.boxes.astype(float).tolist()):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(objects.classes[row]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(objects.areas[row]),
                "iscrowd": int(objects.crowd[row]),
            }
            if masks:
                mask = objects.masks[row]
                assert mask is not None
                try:
                    entry["segmentation"] = encoded(bitmap(mask, objects.width, objects.height))
                except ValueError as error:
                    raise UsageError(f"{truth.path}: {objects.name}: {error}") from None
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _nothing(*_: object) -> None:
    pass
