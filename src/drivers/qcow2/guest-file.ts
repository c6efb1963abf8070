// Writes of guest data to where they stand: the image's file, or the external one.

import type { WriteFlags } from '../../block/driver.ts'
import { hex } from './format.ts'
import type { Image } from './image.ts'

/** What is behind the end is made part of the file first. */
export function writeGuest(image: Image, host: number, data: Buffer, flags?: WriteFlags): Promise<void> {
  const { dataFile, file } = image
  if (!dataFile && image.places.touches(host, data.length)) return Promise.reject(overlap(image, host))
  const into = dataFile ?? file.below
  if (host + data.length <= into.size) return into.write(host, data, flags)
  return growGuest(image, host + data.length).then(() => into.write(host, data, flags))
}

/** Zeroes, written or not, that stay allocated. */
export async function zeroGuest(image: Image, host: number, length: number) {
  const { dataFile, file } = image
  if (!dataFile && image.places.touches(host, length)) throw overlap(image, host)
  await growGuest(image, host + length)
  await (dataFile ?? file.below).zero({ offset: host, length })
}

async function growGuest({ dataFile, file, size }: Image, end: number) {
  if (!dataFile) return file.grow(end)
  while (dataFile.size < end) await dataFile.resize(Math.max(end, size))
}

const overlap = (image: Image, host: number) =>
  image.damaged(`Preventing invalid write on metadata (guest data at ${hex(host)} overlap with a table)`)
