// Every kind of image we can open.

import type { AnyDriver } from '../block/driver.ts'
import { fileCreation } from './create-file.ts'
import { file, hostDevice } from './file.ts'
import { luks } from './luks/luks.ts'
import { nbd } from './nbd.ts'
import { nullCo } from './null-co.ts'
import { qcow2 } from './qcow2/qcow2.ts'
import { raw } from './raw.ts'

export const drivers: readonly AnyDriver[] = [{ ...file, creation: fileCreation }, hostDevice, raw, qcow2, luks, nbd, nullCo]
