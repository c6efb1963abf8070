// Writes of guest data to where they stand: the image's file, or the external one.

import type { WriteFlags } from '../../block/driver.ts'
import { hex } from './format.ts'
import type { Image } from './image.ts'

/** What the last cluster lacks of the file is made part of it first. */
export function writeGuest(image: Image, host: number, data: Buffer, flags?: WriteFlags): Promise<void> {
  const { dataFile, file } = image
  const wrong = objection(image, host, data.length)
  if (wrong) return Promise.reject(wrong)
  file.below.announce?.('write_aio')
  const into = dataFile ?? file.below
  if (host + data.length <= into.size) return into.write(host, data, flags)
  return growGuest(image, host + data.length).then(() => into.write(host, data, flags))
}

/** Zeroes, written or not, that stay allocated. */
export async function zeroGuest(image: Image, host: number, length: number) {
  const { dataFile, file } = image
  const wrong = objection(image, host, length)
  if (wrong) throw wrong
  await growGuest(image, host + length)
  await (dataFile ?? file.below).zero({ offset: host, length })
}

/** Why guest data cannot stand there, whatever the image says. */
function objection(image: Image, host: number, length: number): Error | undefined {
  if (image.dataFile) return undefined
  if (image.places.touches(host, length))
    return image.damaged(`Preventing invalid write on metadata (guest data at ${hex(host)} overlap with a table)`)
  if (host + length > image.file.wholeSize) return image.damaged(`guest data at ${hex(host)} are behind the end of the file`)
  return undefined
}

async function growGuest({ dataFile, file, size }: Image, end: number) {
  if (!dataFile) return file.grow(end)
  while (dataFile.size < end) await dataFile.resize(Math.max(end, size))
}
