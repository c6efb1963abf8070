// The two ways in which a client ends a connection without taking its leave.

import { Fault } from '../base/errors.ts'

/** It went away in the middle of something. */
export class Vanished extends Fault {}

/** It breaks the protocol in a way that leaves nothing to say: its connection is closed. */
export class ProtocolViolation extends Fault {}
