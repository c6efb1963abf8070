// Every kind of object that object-add makes.

import { iothreadObject } from './iothread.ts'
import type { AnyObjectType } from './object-type.ts'
import { secretObject } from './secret.ts'
import { throttleGroupObject } from './throttle-group.ts'
import { tlsCredsPsk, tlsCredsX509 } from './tls-creds.ts'

export const objectTypes: readonly AnyObjectType[] = [
  iothreadObject,
  secretObject,
  throttleGroupObject,
  tlsCredsPsk,
  tlsCredsX509,
]
