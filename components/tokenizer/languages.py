"""Language codes: ISO 639-3, as everywhere in voxzoo, to the codes Whisper uses."""

from __future__ import annotations

_PAIRS = """
afr:af amh:am arb:ar ara:ar ary:ar arz:ar asm:as aze:az azj:az bak:ba bel:be ben:bn bod:bo bos:bs bre:br bul:bg cat:ca
ces:cs cmn:zh cmn_Hant:zh cym:cy dan:da deu:de ell:el eng:en est:et eus:eu fao:fo fas:fa pes:fa fin:fi fra:fr glg:gl
guj:gu hat:ht hau:ha haw:haw heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jav:jw jpn:ja kan:kn kat:ka kaz:kk
khm:km kor:ko lao:lo lat:la lav:lv lvs:lv lin:ln lit:lt ltz:lb mal:ml mar:mr mkd:mk mlg:mg plt:mg mlt:mt mon:mn khk:mn
mri:mi msa:ms zlm:ms zsm:ms mya:my nep:ne npi:ne nld:nl nno:nn nob:no nor:no oci:oc pan:pa pol:pl por:pt pus:ps pbt:ps
ron:ro rus:ru san:sa sin:si slk:sk slv:sl sna:sn snd:sd som:so spa:es sqi:sq srp:sr sun:su swa:sw swh:sw swe:sv tam:ta
tat:tt tel:te tgk:tg tgl:tl tha:th tuk:tk tur:tr ukr:uk urd:ur uzb:uz uzn:uz vie:vi yid:yi yor:yo yue:zh
"""

WHISPER_LANGUAGES: dict[str, str] = {pair.partition(":")[0]: pair.partition(":")[2] for pair in _PAIRS.split()}
"""ISO 639-3 code -> Whisper's code, macrolanguages and the variants SeamlessM4T names included."""
