"""Export a detector to ONNX or OpenVINO, with its preprocessing inside, and judge the file.

    python tools/export_onnx.py CONFIG CHECKPOINT --out FILE.onnx|FILE.xml [--nms] [--uncertainty]
                                [--distribution] [--calibrator JSON] [--intervals JSON] [--level L]
                                [--size H W] [--opset N] [--int8] [--count N] [--check]
                                [--ap val|test] [--time H W] [--cfg-options KEY=VALUE ...]

FILE.onnx runs in ONNX Runtime, FILE.xml in OpenVINO, on processors; --int8 quantises the latter on
training pictures. --check compares with torch, --ap and --time print accuracy and speed.
"""

try:
    from gfl_det.cli import export
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    export.run(export.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
