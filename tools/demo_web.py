"""Drop an image on a page, see boxes with soft edges, click one for its edges' distributions.

    python tools/demo_web.py CONFIG CHECKPOINT [--port N] [--host ADDRESS] [--device DEVICE]
                             [--max-mb MIB] [--max-megapixels MP] [--cfg-options KEY=VALUE ...]

Open the address that it prints. It needs no package but the project's own and no network; images
stay in memory. It listens on 127.0.0.1, so that only this machine can use it.
"""

try:
    from gfl_det import cli
    from gfl_det.demo import command
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}: install the project first, pip install -e .') from error


def main() -> None:
    server = command.build_server(command.parse_arguments())
    print(f'open {server.url} (stop with Ctrl+C)', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == '__main__':
    cli.run(main)
