import CIPMIMonitoring
import Configuration
import Glibc

/// The library's settings of a session, with strings of its own; the secrets among them are wiped at the end.
final class IPMISession {
    private var settings = ipmi_monitoring_ipmi_config()
    private let passwordBytes: Int

    init(_ request: BMCRequest) {
        passwordBytes = request.password.utf8.count
        settings.driver_type = IPMINames.driver(request.driver)
        settings.driver_device = request.device.flatMap { strdup($0) }
        let version = request.session == .lan15 ? IPMI_MONITORING_PROTOCOL_VERSION_1_5 : IPMI_MONITORING_PROTOCOL_VERSION_2_0
        settings.protocol_version = Int32(version.rawValue)
        settings.authentication_type = IPMINames.authentication(request.authentication)
        // Nil is IPMI's anonymous user; an empty string is none.
        settings.username = request.user.isEmpty ? nil : strdup(request.user)
        settings.password = strdup(request.password)
        if let key = request.key, let copy = malloc(max(1, key.count)) {
            key.withUnsafeBytes { if let base = $0.baseAddress { memcpy(copy, base, key.count) } }
            settings.k_g = copy.assumingMemoryBound(to: UInt8.self)
            settings.k_g_len = UInt32(key.count)
        }
        settings.privilege_level = IPMINames.privilege(request.privilege)
        settings.cipher_suite_id = Int32(clamping: request.cipherSuite)
        settings.session_timeout_len = Int32(clamping: request.silenceLimitMs)
        // Half a second is the library's own; it must not be more than the limit.
        settings.retransmission_timeout_len = Int32(clamping: min(500, request.silenceLimitMs))
        settings.workaround_flags = request.workarounds.flags(in: request.session)
    }

    deinit {
        if let password = settings.password { explicit_bzero(password, passwordBytes) }
        if let key = settings.k_g { explicit_bzero(key, Int(settings.k_g_len)) }
        free(settings.username)
        free(settings.password)
        free(settings.k_g)
        free(settings.driver_device)
    }

    func use<R>(_ body: (UnsafeMutablePointer<ipmi_monitoring_ipmi_config>) -> R) -> R { body(&settings) }
}
