// Where the daemon's control socket is when nobody says anything else.

/** As in the settings' default. */
export const fallbackSocket = '/run/stillpoint/control.sock'
