"""Segmentation from image labels: what turns seeds into pseudo masks, and the networks that learn from these.

    from wsol_models.segmentation import build
    network = build("lraspp_mobilenet_v3_large", num_classes=20)
    logits_BLHW = network(images_BCHW)["out"]

Labels L are 0 for the background and k + 1 for class k, so a network of K classes has K + 1 outputs; 255 counts neither
way. Boundaries and walk are IRN (Ahn, Cho and Kwak, CVPR 2019), `pamr` is Araslanov and Roth (CVPR 2020), `crf` the
dense random field (Krähenbühl and Koltun, NeurIPS 2011), `deeplabv2` Chen et al. (TPAMI 2018).
"""

from wsol_models.segmentation.networks import NETWORKS as NETWORKS
from wsol_models.segmentation.networks import Network as Network
from wsol_models.segmentation.networks import build as build

IGNORED = 255
