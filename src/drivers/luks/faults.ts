// What is wrong with a LUKS volume, or with the password for it.

import { InvalidParameter, IoError } from '../../base/errors.ts'

export class NotLuks extends InvalidParameter {}

/** Its header contradicts itself, or the file. */
export class CorruptVolume extends IoError {}

export class WrongPassword extends InvalidParameter {}
