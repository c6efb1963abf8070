// What is thrown where a qcow2 image contradicts itself.

import { InvalidParameter, IoError } from '../../base/errors.ts'

/** The image is damaged: `stillpoint image check` says how much. */
export class CorruptImage extends IoError {}

/** It is no qcow2 image at all. */
export class NotQcow2 extends InvalidParameter {}
