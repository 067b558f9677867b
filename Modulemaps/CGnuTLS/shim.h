/* HMAC and random bytes for the peer handshake; GnuTLS is the TLS library that libvirt itself uses. */
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>
