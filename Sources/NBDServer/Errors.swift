import Glibc
import Platform

/// Why a request was not carried out. The client gets the code and, if it has asked for structured replies, the message.
public struct NBDError: Error, CustomStringConvertible, Sendable {
    /// An `errno`.
    public let code: Int32
    public let message: String

    public init(_ code: Int32, _ message: String) {
        self.code = code
        self.message = message
    }

    public init(_ error: SystemError) {
        self.init(error.code, error.description)
    }

    public var description: String { message }

    /// The protocol has eight codes; what says "no room" or "not allowed" keeps its sense, the rest is an I/O error.
    var wireCode: UInt32 {
        switch code {
        case EPERM, EACCES, EROFS: 1
        case ENOMEM: 12
        case EINVAL: 22
        case ENOSPC, EDQUOT, EFBIG: 28
        case EOVERFLOW: 75
        case ENOTSUP: 95
        case ESHUTDOWN: 108
        default: 5
        }
    }
}

/// Why a connection ended before its time. `at` is how many bytes of the client's had been taken until then.
public enum NBDProtocolError: Error, CustomStringConvertible, Sendable {
    case unknownClientFlags(UInt32)
    case badOptionMagic(UInt64, at: UInt64)
    /// An option other than EXPORT_NAME from a client that does not know the fixed handshake.
    case optionWithoutFixedHandshake(UInt32, at: UInt64)
    case optionTooLong(UInt32, length: Int, limit: Int, at: UInt64)
    /// EXPORT_NAME cannot be answered with an error, only with the end of the connection.
    case noSuchExport(String, at: UInt64)
    case exportInUse(String, at: UInt64)
    case badRequestMagic(UInt32, at: UInt64)
    case writeTooLong(length: Int, limit: Int, at: UInt64)
    case channel(ChannelError, at: UInt64)

    public var description: String {
        func hex(_ value: some BinaryInteger) -> String { "0x\(String(value, radix: 16))" }
        switch self {
        case .unknownClientFlags(let flags): return "The client sets unknown flags in \(hex(flags))"
        case .badOptionMagic(let magic, let at): return "The option at byte \(at) begins with \(hex(magic)), not with IHAVEOPT"
        case .optionWithoutFixedHandshake(let option, let at):
            return "\(Option.name(option)) at byte \(at) from a client that does not know the fixed handshake"
        case .optionTooLong(let option, let length, let limit, let at):
            return "\(Option.name(option)) at byte \(at) announces \(length) bytes, the limit is \(limit)"
        case .noSuchExport(let name, let at): return "EXPORT_NAME at byte \(at) asks for '\(name)', which is not exported"
        case .exportInUse(let name, let at): return "EXPORT_NAME at byte \(at) asks for '\(name)', which another client has"
        case .badRequestMagic(let magic, let at): return "The request at byte \(at) begins with \(hex(magic))"
        case .writeTooLong(let length, let limit, let at): return "WRITE at byte \(at) announces \(length) bytes, the limit is \(limit)"
        case .channel(let error, let at): return "\(error), at byte \(at)"
        }
    }
}
