#!/usr/bin/env bash
# Unpacks Debian's font packages for tools/train_tiny.py without installing them:
#   tools/fonts.sh FOLDER
# FOLDER/training has no typeface in common with FOLDER/held_out and FOLDER/elsewhere.
set -euo pipefail
folder=$1

training=(
  adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis
  adf-libris adf-mekanus adf-romande adf-solothurn adf-switzera adf-tribun
  adf-universalis allerta anonymous-pro arapey averia-sans-gwf averia-serif-gwf
  b612 bebas-neue beteckna cabin cantarell clear-sans cmu comfortaa comic-neue
  courier-prime crosextra-carlito dosis ebgaramond fantasque-sans fanwood
  firacode go goudybookletter humor-sans inconsolata jetbrains-mono junction
  jura karla lato league-mono league-spartan linuxlibertine lmodern manrope
  mononoki national-park noto-mono ocr-b oldstandard open-sans opendin oxygen
  paratype play prociono quattrocento quicksand sil-andika sil-charis
  sil-gentiumplus sora stix texgyre tiresias tuffy ubuntu-title vollkorn
  yanone-kaffeesatz
  3270 century-catalogue f500 monofur monoid okolaks osifont roadgeek routed-gothic
)
held_out=(crosextra-caladea dejavu-core dejavu-extra inter liberation roboto-unhinted)
# For the images of tools/tiny_reader/held_out.py, besides the held-out ones.
elsewhere=(
  agave dseg hack hermit hosny-amiri morisawa-bizud-gothic roboto-slab yrsa-rasa
)

unpack() { # FOLDER NAME...
  mkdir -p "$1" && cd "$1"
  shift
  apt-get download --quiet "${@/#/fonts-}"
  for package in *.deb; do
    dpkg-deb --extract "$package" .
    rm "$package"
  done
}
(unpack "$folder/training" "${training[@]}")
(unpack "$folder/held_out" "${held_out[@]}")
(unpack "$folder/elsewhere" "${elsewhere[@]}")
