import Foundation
import Glibc

extension ServiceConfiguration {
    /// Bytes that a shared secret may have, without the line end that an editor leaves behind.
    /// Below 16 it can be guessed; 4096 is far beyond any key and stops a wrong path from being read.
    public static let secretSize = 16...4096

    /// The shared secret that authenticates peers, or nil when the default file does not exist.
    /// Line ends at its end are dropped, so that the same secret typed and copied on two hosts compares equal.
    public func loadSecret() throws(ConfigurationError) -> Data? {
        func error(_ message: String, _ advice: String) -> ConfigurationError {
            ConfigurationError(file: secretFile, message: message, advice: advice)
        }
        guard var bytes = try SmallFile.read(secretFile, ceiling: Self.secretSize.upperBound + 2, check: Self.checkMode(of: "secret")) else {
            guard secretFileIsExplicit else { return nil }
            throw error("The secret file does not exist", "Make it with `\(makeSecretCommand)` and copy it to every peer")
        }
        while bytes.last == UInt8(ascii: "\n") || bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
        guard Self.secretSize.contains(bytes.count) else {
            throw error("The secret has \(bytes.count) bytes, not \(Self.secretSize.lowerBound) to \(Self.secretSize.upperBound)",
                        "Make a new one with `\(makeSecretCommand)` and copy it to every peer")
        }
        return Data(bytes)
    }

    /// Throws when the service must not listen where it is told to: without a secret anybody who reaches the port could
    /// take over guests, so only loopback (127.0.0.0/8, ::1) is allowed then.
    public func checkListenAllowed(secret: Data?) throws(ConfigurationError) {
        guard secret == nil, !listen.isLoopback else { return }
        throw ConfigurationError(
            file: file, message: "Refusing to listen on \(listen) without a shared secret in \(secretFile)",
            advice: "Make one with `\(makeSecretCommand)` and copy it to every peer, or listen on 127.0.0.1")
    }

    private var makeSecretCommand: String { "(umask 077; openssl rand -hex 32 > \(secretFile))" }

    /// Refuses a file that others than root and its owner can read or change; `what` is what it holds.
    static func checkMode(of what: String) -> SmallFile.Check {
        { status, path throws(ConfigurationError) in
            guard status.st_mode & 0o007 == 0, status.st_mode & 0o020 == 0 else {
                let mode = String(status.st_mode & 0o7777, radix: 8)
                throw ConfigurationError(file: path, message: "The \(what) is open to other users (mode \(mode))",
                                         advice: "Run `chmod 600 \(path)`; if others could read it, make a new one")
            }
            guard status.st_uid == 0 || status.st_uid == geteuid() else {
                throw ConfigurationError(file: path, message: "The \(what) belongs to another user (uid \(status.st_uid))",
                                         advice: "Run `chown root \(path)`")
            }
        }
    }
}
