// Writes another backing file into an image's header, or none. The image itself is read as before until it is opened again.

import { InvalidParameter } from '../../base/errors.ts'
import { Autoclear, Limit } from './format.ts'
import { isSet } from './header.ts'
import type { Image } from './image.ts'

export async function changeBackingFile(image: Image, backingFile: string | undefined, backingFormat?: string) {
  if (backingFile !== undefined && isSet(image.header.autoclear, Autoclear.dataFileRaw))
    throw new InvalidParameter('Cannot set a backing file for images with data-file-raw')
  if (backingFile !== undefined && (backingFile === '' || Buffer.byteLength(backingFile) > Limit.backingFileName))
    throw new InvalidParameter('Backing file name too long')
  await image.settle()
  await image.updateHeader({ backingFile, backingFormat: backingFile === undefined ? undefined : backingFormat })
}
