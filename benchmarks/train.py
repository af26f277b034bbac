#!/usr/bin/env python3
"""Does training wait for its images? Times the input against the training step it feeds, and on a GPU our pipeline against plain loops.

Data are made up (`toy_cache`) and read from a memory map; models, batches, losses and optimiser are those that `fit_model` would train, taken from it
just before it begins. One warm-up round never counts. Nothing is written outside a temporary folder. Two parts:

  on the CPU (default)  for each model of the quick profile at 64 x 64, and each stage of it: CPU milliseconds of one batch of the input (read, warp,
                        normalise, targets and, for cnn_ds, masks) and of the training step on that batch, in turn, on one pinned core with one
                        thread. `ratio` is step over input; at least 2 is wanted. The toy series are short (6 to 9 images), which is the hard case:
                        a longer series makes the step grow and its input hardly. `--large` adds both stages of cnn_lstm in the paper's size
                        (DenseNet-121) at 256 x 256. With `--cores 2` or more the clock on the wall is read, since only the step uses more cores.
  on a GPU (--gpu)      images per second of DenseNet-121 with two heads at 256 x 256 in mixed precision, a round of each way in turn:
                          pipeline  our batches, warped and normalised on the device, with `fit`
                          plain     the same Keras model, `fit` on float32 arrays that are in memory, no augmentation
                          pytorch   torchvision's DenseNet-121 with the same heads and form of the loss, autocast, channels last, fused Adam,
                                    batches copied from pinned memory, no augmentation; left out where torch or torchvision is not installed
                          input     our batches alone, without a model
                        and the share of the time in which the GPU is busy while the pipeline trains (nvidia-smi); at least 90 % is wanted.
                        `--device cpu` runs the same code without a GPU, to try it, and says nothing about speed.

Examples: python benchmarks/train.py --only bhcnet cnn_ds --rounds 5 --json
          KERAS_BACKEND=jax python benchmarks/train.py --gpu
          python benchmarks/train.py --gpu --device cpu --size 64 --batch 8 --rounds 1 --steps 2
"""
import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
GOAL, GOAL_PYTORCH, GOAL_BUSY = 2., 1., 90.  # step over input; pipeline over PyTorch; per cent
BUSY_S = 10.  # seconds of training while nvidia-smi is asked


def prepare(args):
    """Backend, threads and devices, before any library is loaded."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.gpu and args.device == "gpu":  # two libraries share the memory of one GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        return
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"} | {name: str(args.cores) for name in THREADS}
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.cores])


# ---- what is trained

def toy_data(folder, patients, size):
    """One fold of made-up images, read from a file as a cache is."""
    import numpy as np
    from ich_study.batches import fold_data, toy_cache
    stored, folds = toy_cache(patients, size)
    def mapped(name):
        np.save(folder/f"{name}-{size}.npy", getattr(stored, name))
        return np.load(folder/f"{name}-{size}.npy", mmap_mode="r")
    return fold_data(replace(stored, images=mapped("images"), masks=mapped("masks")), folds, 0)


def stages(data, settings):
    """What `fit_model` would train: [(stage, compiled model, training batches)]; the image features, whose values do not matter here, are zeros."""
    import numpy as np
    import pandas as pd
    from ich_study.heads import compile_model
    from ich_study.train import fit_model
    found = []
    def note(model, train, held, epochs, settings, stage, way, seconds, outlined=False):
        found.append((stage, compile_model(model, settings.learning_rate, epochs*len(train), settings.schedule, outlined), train))
        return pd.DataFrame()
    def zeros(network, images, normaliser): return np.zeros((len(images), network.output_shape[-1]), np.float32)
    with mock.patch("ich_study.train._fit", note), mock.patch("ich_study.train.image_features", zeros): fit_model(data, settings)
    return found


# ---- on the CPU

def input_and_step(model, train, steps, rounds, clock):
    """Milliseconds of each batch and of the step on it: {"input": [median, least], "step": …, "ratio": …}"""
    found, steps = {"input": [], "step": []}, min(steps, len(train))
    for k in range(rounds + 1):
        train.start(k)
        for i in range(steps):
            begin = clock()
            x, y = train[i]
            middle = clock()
            model.train_on_batch(x, y)
            if k: found["input"].append(1000*(middle - begin)), found["step"].append(1000*(clock() - middle))
    out = {name: [round(statistics.median(v), 2), round(min(v), 2)] for name, v in found.items()}
    return out | {"ratio": round(out["step"][0]/out["input"][0], 2)}


def one_model(name, profile, data, args, steps, rounds):
    from ich_study.train import SERIES, make_settings
    settings = make_settings(name, profile, batch=args.batch or 0, augment=True, balance=1., precision="float32", warp_on="loader")
    clock, found = time.process_time if args.cores == 1 else time.perf_counter, {}
    for stage, model, train in stages(data, settings):
        batch = f"{SERIES} series" if stage == "series" else f"{settings.batch} images"
        found[f"{name}, {profile}, {stage}"] = {"size": data.cache.images.shape[1], "batch": batch} | input_and_step(model, train, steps, rounds, clock)
    return found


def on_cpu(args, folder):
    import cv2
    import keras
    cv2.setNumThreads(args.cores)
    names, out = args.only, {}
    steps, rounds, size = args.steps or 8, args.rounds or 3, args.size or 64
    data = toy_data(folder, 64, size)
    for name in names:
        print(f"{name} ...", flush=True)
        out |= one_model(name, "quick", data, args, steps, rounds)
        keras.backend.clear_session()
    if args.large:
        print("cnn_lstm in the paper's size ...", flush=True)
        out |= one_model("cnn_lstm", "paper", toy_data(folder, 48, 256), args, min(steps, 2), min(rounds, 2))
    return {"steps": out}


def report_cpu(out, args):
    import pandas as pd
    shown = {k: {i: f"{j[0]} ({j[1]})" if isinstance(j, list) else j for i, j in v.items()} for k, v in out["steps"].items()}
    print(f"\n{'CPU' if args.cores == 1 else 'wall clock'} milliseconds of one batch, median (least); ratio: step over input, at least {GOAL:g} wanted")
    print(pd.DataFrame(shown).T.to_string())
    if slow := [k for k, v in out["steps"].items() if v["ratio"] < GOAL]: print("below the goal:", *slow, sep="\n  ")


# ---- on a GPU

def pipeline(data, settings):
    """A round of our training; the batches alone."""
    _, model, train = stages(data, settings)[0]
    def batches():
        for i in range(len(train)): train[i]
    return (lambda epochs=1: model.fit(train, epochs=epochs, shuffle=False, verbose=0)), batches


def plain_keras(data, settings):
    """A round of the same model on arrays in memory; these arrays."""
    import numpy as np
    _, model, train = stages(data, replace(settings, augment=False, warp_on="loader"))[0]
    images, targets = zip(*(train[i] for i in range(len(train))))
    x, y = np.concatenate(images), {k: np.concatenate([t[k] for t in targets]) for k in targets[0]}
    return (lambda: model.fit(x, y, batch_size=settings.batch, shuffle=False, verbose=0)), x, y


def torch_densenet(channels):
    """torchvision's DenseNet-121 without weights, from an image to its last maps."""
    from torch import nn
    from torchvision.models import densenet121
    body = densenet121(weights=None).features
    body.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return nn.Sequential(body, nn.ReLU(inplace=True))


def torch_heads():
    """The two heads over the average and the maximum of the maps."""
    import torch
    from torch import nn

    class Heads(nn.Module):
        def __init__(self, maps=1024):
            super().__init__()
            self.labels, self.blood = nn.Linear(2*maps, 6), nn.Sequential(nn.Linear(2*maps, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softplus())
        def forward(self, maps):
            features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
            return self.labels(features), self.blood(features)
    return Heads()


def torch_loss(scores, amount, labels, blood, weights):
    """`masked_bce` and `masked_mse`."""
    from torch.nn import functional
    known, said = (labels >= 0)*weights, blood >= 0
    entropy = functional.binary_cross_entropy_with_logits(scores.float(), labels.clamp(min=0), reduction="none")
    return (entropy*known).sum()/known.sum().clamp(min=1) + ((amount.float() - blood)**2*said).sum()/said.sum().clamp(min=1)


def pytorch(x, y, settings, device):
    """A round in PyTorch alone; the gradient is clipped as a whole, which costs less than Keras's way, by weight."""
    import torch
    from ich_study.heads import LABEL_WEIGHTS
    cuda, policy = device == "gpu", {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}.get(settings.precision)
    place = torch.device("cuda" if cuda else "cpu")
    if not cuda: torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.backends.cudnn.benchmark = True
    model = torch.nn.Sequential(torch_densenet(x.shape[-1]), torch_heads()).to(place, memory_format=torch.channels_last).train()
    adam = torch.optim.Adam(model.parameters(), settings.learning_rate, fused=cuda)
    scaler = torch.amp.GradScaler(place.type, enabled=policy is torch.float16)
    weights = torch.tensor(LABEL_WEIGHTS, device=place)
    images = torch.from_numpy(x).permute(0, 3, 1, 2)  # as it lies in memory, this is channels last
    given = [t.pin_memory() if cuda else t for t in (images, torch.from_numpy(y["labels"]), torch.from_numpy(y["blood"]))]
    def epoch():
        for i in range(0, len(x), settings.batch):
            image, labels, blood = (t[i:i + settings.batch].to(place, non_blocking=True) for t in given)
            with torch.autocast(place.type, policy, enabled=policy is not None): scores, amount = model(image)
            loss = torch_loss(scores, amount, labels, blood, weights)
            adam.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(adam)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.)
            scaler.step(adam)
            scaler.update()
        return float(loss.detach())  # waits for the device
    return epoch


def exactly(data, images):
    """The same fold with that many training images, so that no batch is smaller than the others."""
    import numpy as np
    at = data.where("train")[images:]
    role = data.role.astype(object)
    role[at] = "test"
    found = replace(data, role=role.astype(str))
    assert len(found.where("train")) == images, "the toy data have too few images"
    return found


def busy_share(train, seconds):
    """Mean per cent of the time in which the GPU works during a training of `seconds` at least; None where nvidia-smi is missing."""
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", one, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    try: sampler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError: return None
    try: train(max(1, math.ceil(BUSY_S/seconds)))
    finally: sampler.terminate()
    found = [float(line) for line in sampler.communicate()[0].splitlines() if line.strip().isdigit()]
    return round(statistics.mean(found[5:]), 1) if len(found) > 10 else None  # the first second looks back on the time before


def in_turn(ways, images, rounds, seed=1):
    """Images per second of each way: [median, least, most]; each round takes all of them in another order."""
    rng, found = random.Random(seed), {name: [] for name in ways}
    for k in range(rounds + 1):
        for name in rng.sample(list(ways), len(ways)):
            start = time.perf_counter()
            ways[name]()
            if k: found[name].append(images/(time.perf_counter() - start))  # the first round warms up
            else: print(f"{name}: warm after {time.perf_counter() - start:.0f} s", flush=True)
    return {name: [round(f(v), 1) for f in (statistics.median, min, max)] for name, v in found.items()}


def refuse_without(device):
    """One line when the wanted GPU is not there."""
    import keras
    from ich_study.train import devices
    if device == "gpu" and all(name.lower().startswith("cpu") for name in devices()):
        sys.exit(f"train.py: {keras.backend.backend()} finds no GPU here; look at `nvidia-smi`, install the GPU build of jax or torch and set KERAS_BACKEND to it, "
                 "or try the code with --device cpu --size 64 --batch 8 --rounds 1 --steps 2")


def on_gpu(args, folder):
    import keras
    from ich_study.train import devices, make_settings
    refuse_without(args.device)
    size, batch, steps, rounds = args.size or 256, args.batch or 64, args.steps or 40, args.rounds or 5
    precision = args.precision or ("mixed_float16" if args.device == "gpu" else "float32")
    settings = make_settings("cnn_lstm", "paper", batch=batch, augment=True, balance=0., precision=precision, warp_on="model")
    data = exactly(toy_data(folder, 12 + batch*steps//3, size), batch*steps)
    train, batches = pipeline(data, settings)
    plain, x, y = plain_keras(data, settings)
    ways = {"pipeline": train, "plain": plain, "input": batches}
    try: ways["pytorch"] = pytorch(x, y, settings, args.device)
    except ImportError as e: print(f"pytorch is left out: {e}", flush=True)
    rates = in_turn(ways, batch*steps, rounds)
    ratios = {f"pipeline_over_{k}": round(rates["pipeline"][0]/rates[k][0], 3) for k in ("plain", "pytorch", "input") if k in rates}
    busy = busy_share(train, batch*steps/rates["pipeline"][0]) if args.device == "gpu" else None
    return {"backend": keras.backend.backend(), "devices": devices(), "precision": precision, "size": size, "batch": batch, "images": batch*steps, "rounds": rounds,
            "images_per_s": rates, **ratios, "gpu_busy_percent": busy}


def report_gpu(out, args):
    import pandas as pd
    print(f"\nDenseNet-121, {out['size']} x {out['size']}, batches of {out['batch']}, {out['precision']}, {out['backend']} on {', '.join(out['devices'])}")
    print(pd.DataFrame(out["images_per_s"], index=["images/s, median", "least", "most"]).T.to_string())
    print(pd.Series({k: v for k, v in out.items() if "_over_" in k}).to_string())
    if "pipeline_over_pytorch" in out: print(f"(of PyTorch, {GOAL_PYTORCH:g} at least is wanted)")
    busy = out["gpu_busy_percent"]
    print(f"GPU busy: {'not measured' if busy is None else f'{busy} %'} (at least {GOAL_BUSY:g} % wanted)")


# ---- running

def count(text):
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or not int(text): raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse():
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--only", nargs="+", metavar="MODEL", help="models to measure on the CPU (default: all)")
    about.add_argument("--large", action="store_true", help="also cnn_lstm in the paper's size at 256 x 256 (some minutes and 10 GB of memory; less with a small --batch)")
    about.add_argument("--cores", type=count, default=1, help="cores and threads on the CPU (default 1; more: by the clock on the wall)")
    about.add_argument("--gpu", action="store_true", help="the part for a GPU")
    about.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="where that part runs (default gpu)")
    about.add_argument("--precision", choices=("float32", "mixed_float16", "mixed_bfloat16"), help="of that part (default mixed_float16; float32 on a CPU)")
    about.add_argument("--batch", type=count, help="images in a batch (default: the profile's own; 64 with --gpu)")
    about.add_argument("--size", type=count, help="side of an image in pixels, 32 or more (default 64; 256 with --gpu)")
    about.add_argument("--steps", type=count, help="batches in a round (default 8; 40 with --gpu)")
    about.add_argument("--rounds", type=count, help="rounds whose median counts (default 3; 5 with --gpu)")
    about.add_argument("--json", action="store_true", help="last line: all numbers as JSON")
    args = about.parse_args()
    if args.gpu and (args.only or args.large): about.error("--only and --large belong to the part on the CPU, --gpu is the other one")
    if not args.gpu and (args.device == "cpu" or args.precision): about.error("--device and --precision belong to --gpu")
    if args.size and args.size < 32: about.error(f"images of {args.size} pixels are too small for DenseNet, 32 is the least")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if args.cores > cores: about.error(f"{args.cores} cores are wanted, but this process may use {cores}")
    return about, args


def main():
    about, args = parse()
    prepare(args)
    from ich_study.models import model_names
    from ich_study.schema import StudyError
    if odd := sorted(set(args.only or ()) - set(model_names())): about.error(f"no model is called {odd[0]!r}; there are {', '.join(model_names())}")
    args.only = args.only or model_names()
    measure, report = (on_gpu, report_gpu) if args.gpu else (on_cpu, report_cpu)
    try: import keras
    except ImportError as e: sys.exit(f"train.py: Keras cannot load {os.environ['KERAS_BACKEND']} ({e}); set KERAS_BACKEND to what is installed: tensorflow, jax or torch")
    with tempfile.TemporaryDirectory() as temporary:
        try: out = {"backend": keras.backend.backend(), "cores": args.cores, "load": os.getloadavg()[0]} | measure(args, Path(temporary))
        except StudyError as e: about.error(str(e))
    report(out, args)
    if args.json: print(json.dumps(out))


if __name__ == "__main__": main()
