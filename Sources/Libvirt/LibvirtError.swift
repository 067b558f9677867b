import CLibvirt

/// A failed libvirt call. The code stays a number, so that errors of a newer libvirt survive; `kind` names those we know.
public struct LibvirtError: Error, CustomStringConvertible, Sendable, Hashable {
    /// `virErrorNumber`.
    public let code: Int32
    /// `virErrorDomain`: the part of libvirt that reported it.
    public let domain: Int32
    /// `virErrorLevel`.
    public let level: Int32
    /// libvirt's own words. For people: never branch on them.
    public let message: String
    /// The C function that failed.
    public let call: String

    public init(code: Int32, domain: Int32 = 0, level: Int32 = 2, message: String, call: String) {
        (self.code, self.domain, self.level, self.message, self.call) = (code, domain, level, message, call)
    }

    public init(_ kind: Kind, message: String, call: String) {
        self.init(code: kind.rawValue, message: message, call: call)
    }

    public var kind: Kind { Kind(rawValue: code) }
    public var description: String { "\(message) (\(call), libvirt error \(code))" }

    public var isNoDomain: Bool { kind == .noDomain }
    public var isOperationInvalid: Bool { kind == .operationInvalid }
    /// The driver, the daemon or this libvirt does not have the call, the argument or the operation.
    public var isNotSupported: Bool {
        [.noSupport, .callFailed, .argumentUnsupported, .operationUnsupported].contains(kind)
    }

    /// The daemon cannot be reached: the connection went away under the call, was closed before it, or could not be made.
    public var isConnectionLost: Bool {
        switch kind {
        case .invalidConnection, .noConnect: true
        // What the client's own RPC layer reports; a daemon's errors carry the domain of a driver.
        case .systemError, .internalError, .rpc, .operationFailed: domain == Self.rpcDomain
        default: false
        }
    }

    /// VIR_FROM_RPC.
    static let rpcDomain: Int32 = 7

    /// The calling thread's last error. libvirt keeps it per thread: read it in the same synchronous call (`virGetLastError`).
    static func last(_ call: String) -> LibvirtError {
        guard let error = virGetLastError()?.pointee else {
            return LibvirtError(.internalError, message: "Call failed without an error report", call: call)
        }
        return LibvirtError(code: error.code, domain: error.domain, level: Int32(bitPattern: error.level.rawValue),
                            message: borrowed(error.message) ?? "Unknown error", call: call)
    }

    /// The connection was closed by `Connection.close()`.
    static func closed(_ call: String) -> LibvirtError {
        LibvirtError(.invalidConnection, message: "The connection to libvirt is closed", call: call)
    }
}

extension LibvirtError {
    /// `virErrorNumber`; the ones that a client meets.
    public struct Kind: NamedNumber {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        public static let ok = Kind(rawValue: 0)
        public static let internalError = Kind(rawValue: 1)
        public static let noMemory = Kind(rawValue: 2)
        public static let noSupport = Kind(rawValue: 3)
        public static let unknownHost = Kind(rawValue: 4)
        public static let noConnect = Kind(rawValue: 5)
        public static let invalidConnection = Kind(rawValue: 6)
        public static let invalidDomain = Kind(rawValue: 7)
        public static let invalidArgument = Kind(rawValue: 8)
        public static let operationFailed = Kind(rawValue: 9)
        public static let callFailed = Kind(rawValue: 26)
        public static let xmlError = Kind(rawValue: 27)
        public static let domainExists = Kind(rawValue: 28)
        public static let operationDenied = Kind(rawValue: 29)
        public static let xmlDetail = Kind(rawValue: 35)
        public static let systemError = Kind(rawValue: 38)
        public static let rpc = Kind(rawValue: 39)
        public static let noDomain = Kind(rawValue: 42)
        public static let authenticationFailed = Kind(rawValue: 45)
        public static let noStoragePool = Kind(rawValue: 49)
        public static let noStorageVolume = Kind(rawValue: 50)
        public static let operationInvalid = Kind(rawValue: 55)
        public static let configurationUnsupported = Kind(rawValue: 67)
        public static let operationTimeout = Kind(rawValue: 68)
        public static let hookScriptFailed = Kind(rawValue: 70)
        public static let argumentUnsupported = Kind(rawValue: 74)
        public static let operationAborted = Kind(rawValue: 78)
        public static let noDomainMetadata = Kind(rawValue: 80)
        public static let migrateUnsafe = Kind(rawValue: 81)
        public static let overflow = Kind(rawValue: 82)
        public static let blockCopyActive = Kind(rawValue: 83)
        public static let operationUnsupported = Kind(rawValue: 84)
        public static let agentUnresponsive = Kind(rawValue: 86)
        public static let resourceBusy = Kind(rawValue: 87)
        public static let accessDenied = Kind(rawValue: 88)
        public static let storageVolumeExists = Kind(rawValue: 90)
        public static let cpuIncompatible = Kind(rawValue: 91)
        public static let xmlInvalidSchema = Kind(rawValue: 92)
        public static let authenticationUnavailable = Kind(rawValue: 94)
        public static let deviceMissing = Kind(rawValue: 99)

        public static let names: [Int32: String] = [
            0: "ok", 1: "internal error", 2: "no memory", 3: "no support", 4: "unknown host", 5: "no connect", 6: "invalid connection",
            7: "invalid domain", 8: "invalid argument", 9: "operation failed", 26: "call failed", 27: "XML error", 28: "domain exists",
            29: "operation denied", 35: "XML detail", 38: "system error", 39: "RPC error", 42: "no domain", 45: "authentication failed",
            49: "no storage pool", 50: "no storage volume", 55: "operation invalid", 67: "configuration unsupported",
            68: "operation timeout", 70: "hook script failed", 74: "argument unsupported", 78: "operation aborted",
            80: "no domain metadata", 81: "unsafe migration", 82: "overflow", 83: "block copy active", 84: "operation unsupported", 86: "agent unresponsive",
            87: "resource busy", 88: "access denied", 90: "storage volume exists", 91: "CPU incompatible", 92: "invalid XML schema",
            94: "authentication unavailable", 99: "device missing",
        ]
    }
}
