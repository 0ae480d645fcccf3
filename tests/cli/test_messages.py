"""Every verb with many wrong inputs: one line, exit code 2, in the words of the command line.

Python's parameters, its constants, reprs, error numbers and pydantic's lists never reach a user of the command line.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from tiny_models import save_tiny_models

from tessera.cli.app import commands, run
from tessera.cli.error_messages import PHRASES, options_of, with_flags
from tessera.configs.files import write_json
from tessera.tokenize.bundled import BUNDLED, CONFIGS, shipped_path
from tessera.tokenize.data.corpus import ArraysCorpus
from tessera.tokenize.data.media import write_image
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig

PYTHONS = re.compile(
    r"\b(None|True|False|NoneType|Tensor|ValueError|TypeError|pydantic|dict|tuple|str|int|float)\b"
    r"|Errno|PosixPath|Traceback|validation error|input_value|<class|object at 0x|\w+=(True|False|None|')"
    r"|kind='|load_model\(|\.lm\b(?!\.| |/|:)|ask for unconditional"
)
"""What only a Python caller may read."""
PARAMETERS = re.compile(
    r"\b(voice_frames|prompt_frames|num_frames|max_frames|max_seconds|top_[kp]|min_p|repetition_\w+|ras_tau|end_\w+"
    r"|max_silence|fine_temperature|as_json)\b"
)

GENERATE = """
generate
generate digits
generate digits -o
generate digits -o x.png
generate digits --label 7 -o x.png -n 0
generate digits --label 7 -o x.png -n -1
generate digits --label 7 -o x.png -n two
generate digits --label 7 -n 2 -o x.png
generate digits --label 7 -o x.wav
generate digits --label 7 -o x.xyz
generate digits --label 7 -o x.gif
generate digits --label 7 -o model.yaml
generate digits --label 7 -o a-file
generate digits --label 7 -o a-file/x.png
generate digits --label 7 -o a-file/x/y.png
generate digits --label 7 -o {long}.png
generate digits --label 77 -o x.png
generate digits --label -1 -o x.png
generate digits --label seven -o x.png
generate digits --label= -o x.png
generate digits --text seven -o x.png
generate digits --label 7 --text seven -o x.png
generate digits --label 7 --voice a.wav -o x.png
generate digits --label 7 --voice-frames 3 -o x.png
generate digits --label 7 --frames 3 -o x.png
generate digits --label 7 --frames 0 -o x.png
generate digits --label 7 --max-seconds 3 -o x.png
generate digits --label 7 --max-silence 3 -o x.png
generate digits --label 7 --temperature -1 -o x.png
generate digits --label 7 --temperature nan -o x.png
generate digits --label 7 --temperature inf -o x.png
generate digits --label 7 --temperature 1,1 -o x.png
generate digits --label 7 --temperature , -o x.png
generate digits --label 7 --top-k -1 -o x.png
generate digits --label 7 --top-k 1.5 -o x.png
generate digits --label 7 --top-p 2 -o x.png
generate digits --label 7 --top-p 0 -o x.png
generate digits --label 7 --min-p -1 -o x.png
generate digits --label 7 --guidance nan -o x.png
generate digits --label 7 --guidance 1,2 -o x.png
generate digits --label 7 --guidance {{kind: linear}} -o x.png
generate digits --label 7 --guidance {{kind: liner, scale: 3}} -o x.png
generate digits --label 7 --guidance {{kind: [}} -o x.png
generate digits --label 7 --guidance {{scale: x, kind: linear}} -o x.png
generate digits --label 7 --guidance {{scale: null, kind: linear}} -o x.png
generate digits --label 7 --repetition-penalty 0 -o x.png
generate digits --label 7 --repetition-penalty 2 --repetition-window -1 -o x.png
generate digits --label 7 --ras -1 -o x.png
generate digits --label 7 --ras 10 --ras-tau 2 -o x.png
generate digits --label 7 --end-bias 3 -o x.png
generate digits --label 7 --end-rule never -o x.png
generate digits --label 7 --passes 0 -o x.png
generate digits --label 7 --fine-temperature -1 -o x.png
generate digits --label 7 --draft 3 -o x.png
generate digits --label 7 --draft -3 -o x.png
generate digits --label 7 --cache int5 -o x.png
generate digits --label 7 --cache {{kind: ring}} -o x.png
generate digits --label 7 --cache {{kind: ring, window: no}} -o x.png
generate digits --label 7 --cache [1,2] -o x.png
generate digits --label 7 --cache {{window: 4}} -o x.png
generate digits --label 7 --step often -o x.png
generate digits --label 7 --step graph -o x.png
generate digits --label 7 --batch 0 -o x.png
generate digits --label 7 --weights int5 -o x.png
generate digits --label 7 --device tpu -o x.png
generate digits --label 7 --device cuda:99 -o x.png
generate digits --label 7 --device meta -o x.png
generate digits --label 7 --seed x -o x.png
generate digits --label 7 --seed 99999999999999999999 -o x.png
generate digits --label 7 --seed 9223372036854775807 -n 2 -o x
generate digits --label 7 --scale 0 -o x.png
generate digits --label 7 --scale 99999 -o x.png
generate digits --label 7 --grid -o x
generate digits --label 7 --grid -o x.wav
generate digits --label 7 --prompt nowhere.png -o x.png
generate digits --label 7 --prompt a.wav -o x.png
generate digits --label 7 --prompt . -o x.png
generate digits --label 7 --prompt a.png -o x.png
generate digits --label 7 --prompt a.png --prompt-frames 99 -o x.png
generate digits --label 7 --prompt-frames 3 -o x.png
generate digits --label 7 --prompt model/lm.safetensors -o x.png
generate digts --label 7 -o x.png
generate . --label 7 -o x.png
generate nowhere/model --label 7 -o x.png
generate a-file --label 7 -o x.png
generate model/lm.safetensors --label 7 -o x.png
generate model/config.json --label 7 -o x.png
generate model/tokenizer --label 7 -o x.png
generate model/coder --label 7 -o x.png
generate shards --label 7 -o x.png
generate run --label 7 -o x.png
generate foreign --label 7 -o x.png
generate lm.yaml --label 7 -o x.png
generate broken --label 7 -o x.png
generate cut --label 7 -o x.png
generate {tones} --text a --frames 9999999999 -o x.wav
generate {tones} --text a --max-seconds 0 -o x.wav
generate {tones} --text a --max-seconds nan -o x.wav
generate {tones} --text a --max-seconds 1 --frames 3 --prompt a.wav -o x.wav
generate {tones} --text a --scale 3 -o x.wav
generate {tones} --text a --grid -o x.png
generate {tones} --text a --prompt a.wav --frames 2 -o x.wav
generate {tones} --text a --prompt a.wav --prompt-frames 0 -o x.wav
generate {tones} --text a --prompt a.wav --prompt-frames 999 -o x.wav
generate {tones} --text a --prompt short.wav -o x.wav
generate {tones} --text a --prompt a-file -o x.wav
generate {tones} --text a --label star -o x.wav
generate {tones} --text a --voice a.wav -o x.wav
generate {clones} --text a --voice a.wav -o x.wav
generate {clones} --text a --voice a.wav --voice-frames 99 -o x.wav
generate {clones} --text a --voice-frames 3 -o x.wav
generate {clones} --text a --voice nowhere.wav -o x.wav
generate {voices} --text a --text b --label star --label star --label circle -o x
generate {shapes} --label star --text a -o x.png
generate {shapes} -o x.png
"""
TTS_AND_IMAGE = """
tts
tts one
tts one -o x.png
tts one -o x.mp3
tts one -o x.txt
tts one -o a-file/x.wav
tts one --model digits -o x.wav
tts one --model nowhere -o x.wav
tts one --model model/tokenizer -o x.wav
tts one --voice nobody -o x.wav
tts one --voice 99 -o x.wav
tts one --voice-frames 3 -o x.wav
tts one --model {clones} --voice a.wav -o x.wav
tts one -n 2 -o -
tts one -n 2 -o x.wav
tts one --stream -o x.flac
tts one --json -o -
tts one --temperature -1 -o x.wav
tts one --max-seconds 0 -o x.wav
tts one --guidance 1,2 -o x.wav
tts one --seed x -o x.wav
tts one --device tpu -o x.wav
image
image 7
image cat --model digits -o x.png
image 77 --model digits -o x.png
image 7 -o x.wav
image 7 -o x.bmp
image 7 -n 2 -o x.png
image 7 --model speech -o x.png
image 7 --model shards -o x.png
image 7 --frames f -n 2 -o x
image 7 --frames f --grid -o x.png
image 7 --frames a-file -o x.png
image 7 --grid -o x
image 7 --scale 0 -o x.png
image 7 --temperature x -o x.png
image 7 --device tpu -o x.png
"""
OTHERS = """
generat digits
tokenizer trian
nothing
--nothing
eval
eval digits --no-speed
eval digits --data nowhere --no-speed
eval digits --data . --no-speed
eval digits --data model --no-speed
eval digits --data a-file --no-speed
eval speech --data shards --no-speed
eval digits --data shards --no-speed --prompt crop
eval digits --data shards --no-speed --batch 0
eval nowhere
eval {clones} --data shards --no-speed
encode
encode a.png
encode a.png --tokenizer digits
encode a.png --tokenizer digits -o x.bin
encode a.png --tokenizer digts -o x.safetensors
encode a.png --tokenizer shards -o x.safetensors
encode a.png --tokenizer a-file -o x.safetensors
encode a.png --tokenizer lm.yaml -o x.safetensors
encode a.png --tokenizer run -o x.safetensors
encode a.png --tokenizer nowhere/tokenizer -o x.safetensors
encode nowhere --tokenizer digits -o x.safetensors
encode empty --tokenizer digits -o x.safetensors
encode a.wav --tokenizer digits -o x.safetensors
encode a-file --tokenizer digits -o x.safetensors
encode a.png --tokenizer digits --model digits -o x.safetensors
encode a.png --tokenizer digits --compress --model model/tokenizer -o x.tsc
encode a.png --tokenizer digits --compress --model nowhere -o x.tsc
encode a.png --tokenizer digits --compress --model speech -o x.tsc
encode a.png --tokenizer digits --fit tight -o x.safetensors
encode a.png --tokenizer digits -o a-file/x.safetensors
decode
decode nowhere --tokenizer digits -o x
decode . --tokenizer digits -o x
decode a.png --tokenizer digits -o x
decode model/lm.safetensors --tokenizer digits -o x
decode model --tokenizer digits -o x
decode codes.safetensors --tokenizer speech -o x
decode codes.safetensors --tokenizer digits -o a-file
decode codes.safetensors --tokenizer digits -o a-file/x
decode codes.safetensors --tokenizer digits --model digits -o x
decode codes.safetensors --tokenizer digits --format mp3 -o x
coarse
coarse digits --clusters 0 -o x
coarse digits --clusters many -o x
coarse digits --clusters 8,8 -o x
coarse digits --clusters 999 -o x
coarse digits --clusters 8 -o a-file
coarse nowhere --clusters 8 -o x
coarse shards --clusters 8 -o x
coarse digits --clusters 8 --method best -o x
convert
convert nowhere x
convert . x
convert foreign x
convert model x
convert model x --to nothing
convert model x --to musicgen
convert model x --to llamagen
convert model model
convert shards x
convert a-file x
tokenizer eval nowhere
tokenizer eval digits --data nowhere
tokenizer eval digits --data a-file
tokenizer eval digits --data empty
tokenizer eval digits --items 0
tokenizer eval shards
tokenizer eval digits --data a.wav
tokenizer eval digits --model nowhere --data pictures
demo --out a-file
demo --out model
export nowhere
export model
export shards
export run
seal nowhere
seal shards
configs nothing
configs own-speech --copy a-file
doctor --nothing
"""
CONFIGURED = """
train
train nothing
train .
train model
train shards
train digits
train digits/shards
train digits/lm --set
train digits/lm --set nothing
train digits/lm --set nothing=1
train digits/lm --set train.step=1
train digits/lm --set train.steps=many
train digits/lm --set train.steps=null
train digits/lm --set train.steps=true
train digits/lm --set train.steps=1.5
train digits/lm --set train.steps=-1
train digits/lm --set train.steps=[1]
train digits/lm --set train=null
train digits/lm --set train=[]
train digits/lm --set train.betas=[1]
train digits/lm --set train.betas=1
train digits/lm --set train.lr=.inf
train digits/lm --set train.lr=.nan
train digits/lm --set train.dtype=float8
train digits/lm --set lm=null
train digits/lm --set lm.width=30
train digits/lm --set lm.width=null
train digits/lm --set lm.heads=5
train digits/lm --set lm.kind=casual
train digits/lm --set lm.kind=null
train digits/lm --set lm.head=depth
train digits/lm --set lm.head={{kind: deep}}
train digits/lm --set lm.arrangement=delay
train digits/lm --set lm.arrangement={{}}
train digits/lm --set lm.conditions={{kind: label}}
train digits/lm --set lm.conditions=[label]
train digits/lm --set lm.conditions.7.dropout=1
train digits/lm --set lm.conditions.x=1
train digits/lm --set name=../x
train digits/lm --set name=null
train digits/lm --set engine=fast
train digits/lm --set engine.kind=fast
train digits/lm --set device=tpu
train digits/lm --set tokenizer=nowhere
train digits/lm --set tokenizer=digts
train digits/lm --set tokenizer=[a]
train digits/lm --set tokenizer=digits --set data.shards=nowhere
train digits/lm --set tokenizer=digits --set data.shards=.
train digits/lm --set tokenizer=digits --set data.shards=model
train digits/lm --set tokenizer=speech --set data.shards=shards --set data.test=null
train digits/lm --set tokenizer=digits --set data.shards=shards --set data.test=nowhere
train digits/lm --set clusters=model --set tokenizer=digits --set data.shards=shards --set data.test=null
train digits/lm --set generation.temperature=-1
train digits/lm --set generation.temperature=hot
train digits/lm --set generation.guidance=null
train digits/lm --set generation.guidance={{kind: linear}}
train digits/lm --set data.packing=best
train digits/lm --out a-file
train digits/lm --out model
train digits/lm --nproc 0
tokenizer train digits/tokenizer
tokenizer train digits/lm --out x
tokenizer train nothing --out x
tokenizer train digits/tokenizer --out a-file
tokenizer train digits/tokenizer --out model
tokenizer train digits/tokenizer --out x --set data.path=nowhere
tokenizer train digits/tokenizer --out x --set data=nowhere
tokenizer train digits/tokenizer --out x --set data.kind=folders
tokenizer train digits/tokenizer --out x --set data={{kind: folder, path: empty}}
tokenizer train digits/tokenizer --out x --set data={{kind: folder, path: a-file}}
tokenizer train digits/tokenizer --out x --set tokenizer.kind=video
tokenizer train digits/tokenizer --out x --set tokenizer.quantizer=vq
tokenizer train digits/tokenizer --out x --set tokenizer.quantizer=null
tokenizer train digits/tokenizer --out x --set tokenizer.height=0
tokenizer train digits/tokenizer --out x --set tokenizer.height=seven
tokenizer train digits/tokenizer --out x --set losses={{kind: audio}}
tokenizer train digits/tokenizer --out x --set terms=[mel]
tokenizer train digits/tokenizer --out x --set warm_start.tokenizer=nowhere
tokenizer train digits/tokenizer --out x --set init.from=nowhere
tokenizer train digits/tokenizer --out x --set init=speech
tokenizer train digits/tokenizer --out x --set init.from=speech
tokenizer train digits/tokenizer --out x --set init.from=digits --set init.modules=[nothing]
tokenizer train tokenize/distilcodec --out x --set data.path=nowhere
tokenizer coder digits/coder
tokenizer coder digits/coder --out x
tokenizer coder digits/coder --out x --set shards=model
tokenizer coder digits/coder --out x --set shards=shards --set test=nowhere
tokenizer coder digits/coder --out x --set network.context=left
tokenizer coder digits/coder --out x --set network.width=0
shards
shards nothing
shards digits/lm
shards digits/shards --set corpus.path=nowhere --set tokenizer=digits
shards digits/shards --set corpus=nowhere --set tokenizer=digits
shards digits/shards --set corpus.kind=archive --set tokenizer=digits
shards digits/shards --set corpus=null --set tokenizer=digits
shards digits/shards --set tokenizer=nowhere
shards digits/shards --set tokenizer=null
shards digits/shards --set tokenizer=speech --set max_items=1
shards digits/shards --set tokenizer=digits --set out=a-file
shards digits/shards --set tokenizer=digits --set out=shards
shards digits/shards --set tokenizer=digits --set max_items=0
shards digits/shards --set tokenizer=digits --set split=test
shards digits/shards --set tokenizer=digits --set split.part=tests
shards own-speech/shards --set corpus.path=empty --set tokenizer=speech
shards own-speech/shards --set corpus.path=pictures --set tokenizer=speech --set split=null --set out=x
shards own-speech/shards --set corpus.path=pictures --set tokenizer=speech --set alignments=null --set out=x
align own-speech/align
align own-speech/align --set corpus.path=empty
align own-speech/align --set corpus.path=pictures --set out=x
align own-speech/align --set text.kind=sentencepiece
align own-speech/align --set out=a-file
align own-speech/lm
align nowhere.yaml
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one of everything that can be named by mistake."""
    top = tmp_path_factory.mktemp("place")
    shutil.copytree(BUNDLED / "digits", top / "model")
    corpus = ArraysCorpus(path=str(shipped_path("samples/digits/test.safetensors")))
    build_shards(ShardsConfig(corpus=corpus, tokenizer="digits", out=str(top / "shards"), max_items=3), progress=False)
    write_json(top / "foreign" / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    write_json(top / "run" / "config.json", {"name": "a", "lm": {}, "train": {}})
    shutil.copytree(BUNDLED / "digits", top / "broken")
    (top / "broken" / "config.json").write_text('{"format": "tessera-model", "version": 1, "lm": {"width": null}}')
    shutil.copytree(BUNDLED / "digits", top / "cut")
    (top / "cut" / "lm.safetensors").write_bytes((top / "cut" / "lm.safetensors").read_bytes()[:999])
    (top / "a-file").write_text("a file")
    (top / "empty").mkdir()
    write_image(top / "pictures" / "a.png", torch.zeros(1, 9, 9))
    write_image(top / "a.png", torch.zeros(1, 8, 8))
    soundfile.write(top / "a.wav", torch.linspace(-0.5, 0.5, 16 * 9).numpy(), 8000)
    soundfile.write(top / "short.wav", torch.zeros(3).numpy(), 8000)
    (top / "lm.yaml").write_text((CONFIGS / "digits" / "lm.yaml").read_text())
    previous = os.getcwd()
    os.chdir(top)
    assert run(["encode", "a.png", "--tokenizer", "digits", "-o", "codes.safetensors"]) == 0
    os.chdir(previous)
    return top


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


def words_of(line: str, models: Path) -> list[str]:
    """The words of a command; a YAML mapping in braces is one."""
    named = {name: models / name for name in ("shapes", "tones", "voices", "clones")}
    text = line.format(**named, long="x" * 300)
    return [word.replace("\0", " ") for word in re.sub(r"\{.*?\}", lambda m: m[0].replace(" ", "\0"), text).split()]


@pytest.mark.sample(6)
@pytest.mark.parametrize("line", lines(GENERATE) + lines(TTS_AND_IMAGE) + lines(OTHERS) + lines(CONFIGURED))
def test_a_mistake_is_one_line_in_the_words_of_the_command_line(line, place, models, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    before = {path for path in place.rglob("*")}
    words = words_of(line, models)
    assert run(words) == 2, capsys.readouterr().err
    printed = capsys.readouterr()
    said = printed.err.strip().splitlines()
    assert said and said[-1].startswith("tessera: "), printed.err
    notes = ("skipped: ", "config ", "note: ")
    assert all(one.startswith(notes) or "items could not be used" in one for one in said[:-1]), printed.err
    text = said[-1]
    assert not printed.out
    assert not PYTHONS.search(text), text
    if line not in lines(CONFIGURED):
        assert not PARAMETERS.search(text), text
    assert len(text) < 700, text
    made = {path for path in place.rglob("*")} - before
    assert not any(path.is_file() and not path.name.startswith("part-") for path in made), made


def test_names_become_the_flags_of_the_verb():
    generate = options_of(["generate", "digits"], commands())
    assert (
        with_flags("tessera: voice_frames is 3, num_frames 4", generate) == "tessera: --voice-frames is 3, --frames 4"
    )
    assert with_flags("tessera: generate: top_k.0: bad", generate) == "tessera: --top-k: bad"
    assert with_flags("tessera: give one, or ask for unconditional", generate).endswith("or add --unconditional")
    assert with_flags("tessera: /a/voice_frames: no such file", generate) == "tessera: /a/voice_frames: no such file"
    tts = options_of(["tts"], commands())
    assert with_flags("tessera: give a text, or ask for unconditional", tts) == "tessera: give a text"
    assert with_flags("tessera: end_bias must be 1", tts) == "tessera: end_bias must be 1", "tts has no such flag"
    train = options_of(["train"], commands())
    assert with_flags("tessera: data.max_frames is 3", train) == "tessera: data.max_frames is 3", "keys of YAML"
    for written, _, needed in PHRASES:
        assert re.compile(written) and (needed is None or needed in generate or needed == "frames")
