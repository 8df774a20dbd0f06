r"""Hand a finished model on: a folder that needs nothing of where it was made, MLflow's form, ONNX or torch.export.

    python rayjobs/export.py --study bas --out bas-model  # a folder with a card; wsol.load_model("bas-model")
    python rayjobs/export.py --model models:/bas@champion --format onnx --images photographs --out bas.onnx
    python rayjobs/export.py --study bas --format mlflow --out bas-mlflow

A graph is compared with the model on 64 images before it is kept: logits, maps, boxes; what makes boxes of its maps, by
NumPy alone, is written beside it. Readouts that need gradients
(gradcam, bagcams, ...) have no graph; the folder reads them all.
"""

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.use.options import ExportOptions as Options


def export(options: Options) -> list[str]:
    """Write what `options` ask for; what to say of it, in lines."""
    from wsol_pipeline.storage import Store
    from wsol_pipeline.tracking.registry import save_pyfunc
    from wsol_pipeline.use.folder import write_folder
    from wsol_pipeline.use.graph import export_graph, reader_name
    from wsol_pipeline.use.models import named

    if options.format == "folder":
        return write_folder(options, Store.at(options.out))
    if options.format == "mlflow":
        return [save_pyfunc(named(options), options.out)]
    parity, (folder, slash, name) = export_graph(options), options.out.rpartition("/")
    return [str(parity), options.out, f"{folder}{slash}{reader_name(name)}"]


def main(args: list[str] | None = None) -> int:
    print("\n".join(export(command_line(Options, args, __doc__))))
    return 0


if __name__ == "__main__":
    run_main(main)
