"""Test a detector: print the COCO table, write detections and pictures.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--show-dir DIR] [--out FILE] [--tta]
                         [--classwise] [--optimize [DTYPE]] [--cfg-options KEY=VALUE ...]
                         [--launcher NAME]

CONFIG is a file or the name of a shipped config, CHECKPOINT a file or an address. --out writes
samples to a .pkl or COCO results to a .json. On several GPUs: tools/dist_test.sh.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.engine import config_edits, preflight
    from gfl_det.engine.runner import build_runner
    from gfl_det.inference.optimize import optimize_model
    from gfl_det.utils.config import load_config
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    args = cli.parse_test_arguments()
    cfg = load_config(args.config, args.cfg_options)
    config_edits.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    preflight.check_testing(cfg)
    if args.classwise:
        config_edits.list_classes_apart(cfg)
    if args.show_dir:
        config_edits.draw_into(cfg, args.show_dir)
    if args.out:
        config_edits.write_results(cfg, args.out)
    if args.tta:
        config_edits.use_test_time_augmentation(cfg)
    runner = build_runner(cfg, args.launcher)
    if args.optimize:
        optimize_model(runner, args.optimize)
    runner.test()
    cli.tell_outputs(args.out, args.show_dir)


if __name__ == '__main__':
    cli.run(main)
