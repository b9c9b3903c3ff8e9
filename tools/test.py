"""Test a detector: print the COCO table, write detections and pictures.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--show-dir DIR] [--out FILE] [--tta]
                         [--classwise] [--optimize [DTYPE]] [--cfg-options KEY=VALUE ...]
                         [--launcher NAME]

CONFIG is a file or the name of a shipped config, CHECKPOINT a file or an address. --out writes
samples to a .pkl or COCO results to a .json. On several GPUs: tools/dist_test.sh.
"""

try:
    from gfl_det import cli, launch, options, preflight
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    args = cli.parse_test_arguments()
    cfg = cli.load_config(args.config, args.cfg_options)
    options.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    preflight.check_testing(cfg)
    if args.classwise:
        options.list_classes_apart(cfg)
    if args.show_dir:
        options.draw_into(cfg, args.show_dir)
    if args.out:
        options.write_results(cfg, args.out)
    if args.tta:
        options.use_test_time_augmentation(cfg)
    runner = launch.build_runner(cfg, args.launcher)
    if args.optimize:
        launch.optimize_model(runner, args.optimize)
    runner.test()
    cli.tell_outputs(args.out, args.show_dir)


if __name__ == '__main__':
    cli.run(main)
