// Options that several verbs of `stillpoint image` have, called as qemu-img calls them.

import { Option } from 'commander'
import type { ImageName } from '../../image/images.ts'
import { Misuse } from '../../failure.ts'

export const formatOption = () => new Option('-f, --format <format>', 'format of the image; without it, it is looked at')
export const imageOptsOption = () => new Option('--image-opts', 'the name is options: driver=qcow2,file.filename=...')
export const forceShareOption = () => new Option('-U, --force-share', 'though another program may write to it meanwhile')
export const quietOption = () => new Option('-q, --quiet', 'say nothing but errors')
export const progressOption = () => new Option('-p, --progress', 'show how far it is, as qemu-img does')
export const outputOption = () =>
  new Option('--output <form>', 'human, or json as qemu-img has it').choices(['human', 'json']).default('human')

/** Given more than once they are one behind the other. */
export const list = (value: string, before: readonly string[] = []) => [...before, value]

export interface NameOptions {
  readonly format?: string
  readonly imageOpts?: boolean
  readonly forceShare?: boolean
}

export const nameOf = (name: string, { format, imageOpts, forceShare }: NameOptions): ImageName => {
  if (format !== undefined && imageOpts) throw new Misuse('--image-opts says the format itself; leave out -f')
  return { name, format, imageOpts, forceShare }
}

/** As qemu-img prints JSON; with --json on one line. */
export const jsonText = (value: unknown, compact: boolean) => `${JSON.stringify(value, undefined, compact ? 0 : 4)}\n`
