// Every kind of object that object-add makes.

import { authzList, authzListFile, authzSimple } from './authz.ts'
import { iothreadObject } from './iothread.ts'
import type { AnyObjectType } from './object-type.ts'
import { secretObject } from './secret.ts'
import { throttleGroupObject } from './throttle-group.ts'
import { tlsCredsPsk, tlsCredsX509 } from './tls-creds.ts'

export const objectTypes: readonly AnyObjectType[] = [
  authzList,
  authzListFile,
  authzSimple,
  iothreadObject,
  secretObject,
  throttleGroupObject,
  tlsCredsPsk,
  tlsCredsX509,
]
