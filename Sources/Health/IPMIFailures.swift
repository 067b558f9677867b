import CIPMIMonitoring
import ControlProtocol
import Glibc

extension BMCRequest {
    /// The BMC as messages call it.
    var name: String { host.map { "The BMC at \($0)" } ?? "This host's BMC" }

    private var deviceName: String { device ?? driver.device ?? "the I/O ports of the BMC" }

    /// What the library's error number means here, and the way out. `text` is the library's own word for it.
    func failure(code: Int, text: String) -> BMCFailure {
        let error = ipmi_monitoring_error_codes(UInt32(clamping: code))
        switch error {
        case IPMI_MONITORING_ERR_CONNECTION_TIMEOUT, IPMI_MONITORING_ERR_SESSION_TIMEOUT:
            return BMCFailure(.unreachable, "\(name) does not answer", advice: host == nil
                ? "Look at `dmesg | grep ipmi`"
                : "Check bmc_address, and that IPMI over LAN is enabled in the BMC")
        case IPMI_MONITORING_ERR_HOSTNAME_INVALID:
            return BMCFailure(.unreachable, "\(name) cannot be found: there is no such host name", advice: "Correct bmc_address")
        case IPMI_MONITORING_ERR_BMC_BUSY:
            return BMCFailure(.unreachable, "\(name) is busy")
        case IPMI_MONITORING_ERR_SDR_CACHE_PERMISSION, IPMI_MONITORING_ERR_SDR_CACHE_FILESYSTEM:
            return BMCFailure(.other, "What is known of the BMC's sensors cannot be kept in \(cacheDirectory) (\(text))",
                              advice: "Check the folder's mode and its file system")
        case IPMI_MONITORING_ERR_PARAMETERS where host != nil:
            return BMCFailure(.refused, "FreeIPMI does not take these settings for \(name)",
                              advice: "Check bmc_user, bmc_password_file, \(session == .lan15 ? "bmc_authentication" : "bmc_cipher_suite, bmc_kg_file") and bmc_workarounds")
        default:
            return refusal(error) ?? internalFailure(text)
        }
    }

    /// What the BMC has against our session.
    private func refusal(_ error: ipmi_monitoring_error_codes) -> BMCFailure? {
        switch error {
        case IPMI_MONITORING_ERR_USERNAME_INVALID:
            BMCFailure(.refused, "\(name) knows no user '\(user)'", advice: "Correct bmc_user, or allow that account IPMI in the BMC's settings")
        case IPMI_MONITORING_ERR_PASSWORD_INVALID, IPMI_MONITORING_ERR_PASSWORD_VERIFICATION_TIMEOUT:
            BMCFailure(.refused, "\(name) refuses the password of user '\(user)'", advice: "Correct what is in bmc_password_file")
        case IPMI_MONITORING_ERR_PRIVILEGEL_LEVEL_CANNOT_BE_OBTAINED:
            BMCFailure(.refused, "\(name) does not grant user '\(user)' the privilege level '\(privilege)'",
                       advice: "Set bmc_privilege to what the account has; some BMCs need bmc_workarounds = [ \"opensesspriv\" ]")
        case IPMI_MONITORING_ERR_PRIVILEGE_LEVEL_INSUFFICIENT, IPMI_MONITORING_ERR_PERMISSION:
            host == nil ? BMCFailure(.refused, "\(deviceName) cannot be opened", advice: "Run as root")
                : BMCFailure(.refused, "The privilege level '\(privilege)' is not enough for \(name)", advice: "Set bmc_privilege to \"operator\" or \"admin\"")
        case IPMI_MONITORING_ERR_CIPHER_SUITE_ID_UNAVAILABLE:
            BMCFailure(.refused, "\(name) does not offer cipher suite \(cipherSuite)", advice: "Set bmc_cipher_suite to 3 or 17")
        case IPMI_MONITORING_ERR_IPMI_2_0_UNAVAILABLE:
            BMCFailure(.refused, "\(name) does not speak IPMI 2.0", advice: "Set bmc_protocol = \"1.5\", update its firmware, or use bmc_address = \"local\"")
        case IPMI_MONITORING_ERR_K_G_INVALID:
            key == nil
                ? BMCFailure(.refused, "\(name) wants a key (K_g) beside the password", advice: "Write it into a file that bmc_kg_file names, or clear K_g in the BMC's settings")
                : BMCFailure(.refused, "\(name) refuses the key K_g", advice: "Correct what is in bmc_kg_file")
        case IPMI_MONITORING_ERR_AUTHENTICATION_TYPE_UNAVAILABLE:
            BMCFailure(.refused, "\(name) does not offer the authentication '\(authentication.rawValue)'", advice: "Set bmc_authentication to another: md5 is the best")
        default: nil
        }
    }

    private func internalFailure(_ text: String) -> BMCFailure {
        guard host == nil else {
            // FreeIPMI's word when the answer is not what it expects, an unknown cipher suite among them.
            return BMCFailure(.other, "\(name) cannot be read: \(text)",
                              advice: (session == .lan15 ? "Try another bmc_authentication" : "Try another bmc_cipher_suite (now \(cipherSuite))") + ", or a workaround: `ipmi-sensors -W` lists them (man ipmi-sensors)")
        }
        return BMCFailure(.other, "\(name) cannot be read through \(deviceName): \(text)", advice: "Look at `dmesg | grep -i ipmi`")
    }
}
